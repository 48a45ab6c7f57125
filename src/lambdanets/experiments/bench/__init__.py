"""Measurements that return rows."""
