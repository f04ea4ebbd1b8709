"""Where the disks of a point go: image files, block devices, volumes of another host."""
