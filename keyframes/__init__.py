"""What is new in a picture: novelty, keyframes, and which work can be spared."""
