"""Vision-language-action models (VLAs), and how they are stored."""
