"""MOFDiff: new metal-organic frameworks from building blocks."""
