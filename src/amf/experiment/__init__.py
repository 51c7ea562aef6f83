"""Named, seeded studies: a question, what varies, goals; one command writes their table and page (docs/experiments.md)."""
