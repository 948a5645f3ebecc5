"""The evidence: report.json, report.html, the contact sheet and the manifest of a build."""
