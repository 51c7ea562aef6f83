"""What a gateway says of its workers: asked for, compared, shown (`amf workers`)."""
