"""The opponents: published rules, one system a file, with their published defaults in `FabricConfig`. What they do not know,
they are not given. Each says what of the original could not be reproduced above an unmodified engine."""
