"""From clicks to prompts: distillation, the policy for unsupported slices, the click-noise simulator."""
