"""User-creatable objects (object-add, --object). Importing ``engine.objects.types`` makes every type known."""
