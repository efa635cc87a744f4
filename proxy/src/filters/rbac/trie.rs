//! A radix trie of texts: finds, in one walk over a text, all that the text begins with.

/// Numbers by text.
#[derive(Debug, Default)]
pub struct Trie {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// What the text up to here stands for.
    items: Vec<u32>,
    /// What may come next; no two begin with the same byte.
    edges: Vec<(Box<[u8]>, usize)>,
}

impl Trie {
    /// Adds a number for a text.
    pub fn insert(&mut self, text: &[u8], item: u32) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let (mut at, mut rest) = (0, text);
        while let Some(first) = rest.first() {
            let Some(edge) = self.nodes[at].edges.iter().position(|(label, _)| label.first() == Some(first))
            else {
                let new = self.add(Node::default());
                self.nodes[at].edges.push((rest.into(), new));
                at = new;
                break;
            };
            let (label, next) = self.nodes[at].edges[edge].clone();
            let common = label.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if common < label.len() {
                // The edge is split where the two part.
                let middle =
                    self.add(Node { items: Vec::new(), edges: vec![(label[common..].into(), next)] });
                self.nodes[at].edges[edge] = (label[..common].into(), middle);
                at = middle;
            } else {
                at = next;
            }
            rest = &rest[common..];
        }
        self.nodes[at].items.push(item);
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Calls `f` with the numbers of every text that this one begins with, until it says that it is enough.
    pub fn find(&self, bytes: impl Iterator<Item = u8>, f: &mut impl FnMut(&[u32]) -> bool) -> bool {
        let Some(mut node) = self.nodes.first() else { return false };
        let mut bytes = bytes.peekable();
        loop {
            if !node.items.is_empty() && f(&node.items) {
                return true;
            }
            let Some(first) = bytes.peek().copied() else { return false };
            let Some((label, next)) = node.edges.iter().find(|(label, _)| label.first() == Some(&first))
            else {
                return false;
            };
            for wanted in &**label {
                if bytes.next() != Some(*wanted) {
                    return false;
                }
            }
            node = &self.nodes[*next];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_text_begins_with_is_found() {
        let mut trie = Trie::default();
        let texts = ["/a", "/a/b", "/ab", "", "/a", "/x/long/path", "/x/longer"];
        for (number, text) in texts.iter().enumerate() {
            trie.insert(text.as_bytes(), number as u32);
        }
        for text in ["/a/b/c", "/ab", "/a", "/x/long/path", "/x/longe", "/x/longer!", "", "z", "/"] {
            let mut found = Vec::new();
            trie.find(text.bytes(), &mut |items| {
                found.extend_from_slice(items);
                false
            });
            found.sort_unstable();
            let expected: Vec<_> =
                (0..texts.len()).filter(|n| text.starts_with(texts[*n])).map(|n| n as u32).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
