"""What a seal beside a snapshot promises."""
