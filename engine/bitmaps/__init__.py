"""Dirty bitmaps kept in memory."""
