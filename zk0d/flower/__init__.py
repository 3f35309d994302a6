"""The only package that touches Flower beyond its public app interface."""
