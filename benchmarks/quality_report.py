"""The tables of `quality.py`."""
def write_report(folder, about, runs):
    pass
