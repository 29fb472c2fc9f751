"""The command line: parse, import what is needed, call, print."""
