"""Measurements that anyone can repeat: each a function that returns rows."""
