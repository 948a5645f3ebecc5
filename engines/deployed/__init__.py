"""Scripts that travel with a package as they stand; they import nothing of fdda-deploy."""
