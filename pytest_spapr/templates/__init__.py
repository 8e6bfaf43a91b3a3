"""Templates: booted machines at rest on disk, which clones start from in a tenth of a second."""
