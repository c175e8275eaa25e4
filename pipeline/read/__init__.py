"""HTTP out: KPIs, explanations, cases, business metrics."""
