"""The paper's experiments: what a study is, its cells, and how they are run; the studies are in ``studies/``."""
