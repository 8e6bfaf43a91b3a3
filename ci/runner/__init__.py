"""The suite on a ppc64 runner with KVM, which is an emulated machine where there is no other. Run by ``ci/ppc64-runner``."""
