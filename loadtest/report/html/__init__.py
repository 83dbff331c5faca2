"""The report of a run as one HTML page that needs nothing else: no script, no network, no other file.

From the bottom up, each module knowing only those before it:

markup      elements of HTML and SVG; the one place where text is escaped
evidence    what the charts show, computed from the rounds
charts      evidence -> drawings: percentiles, a configuration over time, the workers' shares
page        tables, charts, notes, provenance; with page.css inlined

Rules.
- Every figure is on the page twice: written as in the other formats, and exact, as JSON in `data-value`. `data-figure`
  names its place in `report --format json`; a curve, which has no place there, carries its points.
- A chart that stands alone is drawn for two widths, and the style sheet shows the one that fits: a scaled drawing has
  letters that nobody can read. Charts that come in numbers are small from the start, and wrap.
- Legends and captions are HTML, which wraps; inside a drawing is only what belongs to a coordinate.
- Nothing from a file can become markup, and the page forbids itself scripts and addresses in its own policy, too.
"""
