"""A report as people look at it: a line of progress, tables, pictures, a page."""
