"""What is wrong with engines, gateway and prompts, and how to mend it (`amf doctor`)."""
