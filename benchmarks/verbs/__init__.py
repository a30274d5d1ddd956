"""Verbs of the command line, a file for each group. Importing one imports no torch; a verb imports what it needs."""
