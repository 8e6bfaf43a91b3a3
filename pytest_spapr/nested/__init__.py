"""A pseries machine inside of a host of our own, whose kernel passes devices through to it: VFIO, IOMMU and AER without hardware."""
