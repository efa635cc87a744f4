//! The example mesh as it was when this binary was built, so that the binary alone can show it.

use std::path::Path;

use anyhow::Context;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../deploy/ecotrack/", $name)))),*]
    };
}

/// Every file of `deploy/ecotrack`: name and content.
pub const ECOTRACK: [(&str, &str); 10] = files![
    "ingress.yaml",
    "mesh.yaml",
    "notification-service.yaml",
    "order-service.yaml",
    "payment-service.yaml",
    "product-service.yaml",
    "security.yaml",
    "sidecar.yaml",
    "user-service-traffic.yaml",
    "user-service.yaml",
];

/// Writes the files into a directory, which is made.
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, text) in ECOTRACK {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_directory_is_left_out() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ecotrack");
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ECOTRACK.map(|(name, _)| name));
    }
}
