"""One module for each row of a dashboard; a function for each panel."""
