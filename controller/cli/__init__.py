"""The command line. Knows nothing about how tasks are solved; it reads options, calls the package and prints."""
