"""The commands of `amf`, one file each."""
