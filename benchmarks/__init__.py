"""Everything that measures: problems with known truth, the moment engine, costs, records, the command line.

Importing this package imports no torch, so that ``gradest --help`` answers at once.
"""

__version__ = "0.1.0"
