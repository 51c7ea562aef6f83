"""Orders to LMCache's controller by hand (`amf cache`)."""
