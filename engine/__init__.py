"""blockmon's block engine: a library without a screen."""
