"""A worker's KV memory as a line of pages: who reserves which, and in how long runs."""
