"""`amf demo`: a fleet of emulated workers, the gateway under several policies, and one honest table."""
