"""vhost-user-blk exports: a virtio disk for a virtual machine of another process, through memory that both share."""
