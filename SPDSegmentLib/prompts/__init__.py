"""From clicks to prompts: Contextual Prompt Distillation, the policy for unsupported slices, the click-noise simulator."""
