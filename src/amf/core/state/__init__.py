"""Facts. Each has one owner here; policies read them, only `Fabric.handle` changes them."""
