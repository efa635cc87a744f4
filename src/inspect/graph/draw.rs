//! The graph as a picture: callers to the left of whom they call.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::edges::{Both, Edges, End};
use super::label;

const COLUMN: usize = 380;
const ROW: usize = 70;
const HEIGHT: usize = 34;
const MARGIN: usize = 30;
/// The width of a letter; the font is of one width.
const LETTER: usize = 8;

/// The colour of an edge: by how much of it succeeds.
pub(super) fn colour(both: &Both) -> &'static str {
    match both.told().success() {
        None => "#555555",
        Some(share) if share >= 0.99 => "#2e7d32",
        Some(share) if share >= 0.95 => "#b26a00",
        Some(_) => "#c62828",
    }
}

/// The column of each end: one more than that of any who calls it. Of a ring the edge that closes it is left out of account.
fn columns(edges: &Edges) -> BTreeMap<&End, usize> {
    let mut calls: BTreeMap<&End, BTreeSet<&End>> = BTreeMap::new();
    for between in edges.keys() {
        calls.entry(&between.from).or_default().insert(&between.to);
        calls.entry(&between.to).or_default();
    }
    // Who is called comes after whom it is called by; depth first, without recursion.
    let (mut order, mut done, mut open) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut closing = BTreeSet::new();
    for start in calls.keys().copied() {
        let mut stack = vec![(start, false)];
        while let Some((end, left)) = stack.pop() {
            if left {
                open.remove(end);
                order.push(end);
                continue;
            }
            if !done.insert(end) {
                continue;
            }
            open.insert(end);
            stack.push((end, true));
            for next in calls[end].iter().copied() {
                if open.contains(next) {
                    closing.insert((end, next));
                } else if !done.contains(next) {
                    stack.push((next, false));
                }
            }
        }
    }
    let mut columns: BTreeMap<&End, usize> = calls.keys().map(|end| (*end, 0)).collect();
    for end in order.into_iter().rev() {
        let next = columns[end] + 1;
        for called in calls[end].iter().filter(|called| !closing.contains(&(end, **called))) {
            if let Some(column) = columns.get_mut(called) {
                *column = next.max(*column);
            }
        }
    }
    columns
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The picture.
pub(super) fn svg(edges: &Edges, over: Option<Duration>) -> String {
    let mut rows: BTreeMap<usize, usize> = BTreeMap::new();
    let mut places: BTreeMap<&End, (usize, usize)> = BTreeMap::new();
    for (end, column) in columns(edges) {
        let row = rows.entry(column).or_default();
        places.insert(end, (MARGIN + column * COLUMN, MARGIN + *row * ROW));
        *row += 1;
    }
    let width_of = |end: &End| end.to_string().chars().count() * LETTER + 24;
    let width = places.iter().map(|(end, (x, _))| x + width_of(end)).max().unwrap_or(0) + MARGIN;
    let height = rows.values().max().copied().unwrap_or(0) * ROW + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <defs><marker id=\"to\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\">\
         <path d=\"M0 0L8 4L0 8z\"/></marker></defs>\n"
    );
    for (between, both) in edges {
        let ((x1, y1), (x2, y2)) = (places[&between.from], places[&between.to]);
        let (x1, y1, y2) = (x1 + width_of(&between.from), y1 + HEIGHT / 2, y2 + HEIGHT / 2);
        let middle = (x1 + x2) / 2;
        out.push_str(&format!(
            "<path d=\"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" marker-end=\"url(#to)\"/>\n\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\">{}</text>\n",
            colour(both),
            (y1 + y2) / 2 - 4,
            escaped(&label(between, both, over)),
        ));
    }
    for (end, (x, y)) in &places {
        out.push_str(&format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{HEIGHT}\" rx=\"5\" fill=\"#eef2f7\" stroke=\"#37474f\"/>\n\
             <text x=\"{}\" y=\"{}\">{}</text>\n",
            width_of(end),
            x + 12,
            y + HEIGHT / 2 + 4,
            escaped(&end.to_string()),
        ));
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::super::tests::edges;
    use super::*;

    #[test]
    fn who_is_called_stands_to_the_right_and_a_ring_ends() {
        let edges = edges(&[("a", "b"), ("b", "c"), ("a", "c"), ("c", "a"), ("d", "d")]);
        let columns: BTreeMap<String, usize> =
            columns(&edges).into_iter().map(|(end, column)| (end.to_string(), column)).collect();
        let wanted = [("a.shop", 0), ("b.shop", 1), ("c.shop", 2), ("d.shop", 0)];
        assert_eq!(columns, wanted.map(|(name, column)| (name.to_owned(), column)).into());
    }

    #[test]
    fn a_picture_is_xml_whatever_the_names() {
        let text = svg(&edges(&[("a<b>", "c&d")]), None);
        assert!(text.contains("a&lt;b&gt;.shop") && text.contains("c&amp;d.shop"), "{text}");
        assert_eq!(text.matches("<rect").count(), 2);
    }
}
