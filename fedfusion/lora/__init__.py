"""LoRA adapters: PEFT in and out, and linear algebra on their products."""
