"""Character devices: where a monitor's bytes come from and go to. A new kind is a file here and a line in ``kinds``."""
