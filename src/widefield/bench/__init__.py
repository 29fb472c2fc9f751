"""Benchmarks: problems as data, a runner that times nothing wrong, records, and the page made of them.

Everything but `report` and `plots` needs torch, numpy and timm alone.
"""
