"""What a score means: metrics, intervals, calibration, operating point, baseline, figures."""
