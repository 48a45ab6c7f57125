"""Exact ways through the lambda sum, one file each, and the planner that picks among them."""
