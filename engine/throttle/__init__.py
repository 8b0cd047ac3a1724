"""Limits on the rate of requests: leaky buckets, and groups that share them."""
