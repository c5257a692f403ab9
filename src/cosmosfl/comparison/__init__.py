"""Methods × seeds × a grid, as runs that can be taken up again; tables, tests and a page of what came out."""
