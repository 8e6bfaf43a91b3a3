"""Guest images: a kernel and an initramfs, built from a recipe and kept in the cache."""
