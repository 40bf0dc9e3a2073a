use std::os::unix::fs::symlink;

use super::*;
use crate::source::read;

fn paths(paths: &[&Path]) -> Vec<PathBuf> {
    paths.iter().map(|p| p.to_path_buf()).collect()
}

fn names(set: &FileSet) -> Vec<String> {
    set.files()
        .iter()
        .map(|f| f.path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}

fn only(path: PathBuf) -> BTreeSet<PathBuf> {
    BTreeSet::from([path])
}

#[test]
fn a_directory_is_its_config_files_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "b.yml",
        "a.yaml",
        "c.json",
        "notes.txt",
        ".hidden.yaml",
        "a.yaml~",
    ] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    symlink(dir.path().join("notes.txt"), dir.path().join("d.yaml")).unwrap();
    let mut set = FileSet::new(&paths(&[dir.path()]));
    assert_eq!(set.scan(Trust::Stamps), Ok(true));
    assert_eq!(names(&set), ["a.yaml", "b.yml", "c.json", "d.yaml"]);
    assert_eq!(set.files()[3].text, "notes.txt");
    assert_eq!(set.scan(Trust::Nothing), Ok(false));
}

#[test]
fn roots_keep_their_order_and_come_once() {
    let dir = tempfile::tempdir().unwrap();
    let (a, z) = (dir.path().join("a.yaml"), dir.path().join("z.yaml"));
    fs::write(&a, "a").unwrap();
    fs::write(&z, "z").unwrap();
    let files = read(&paths(&[&z, dir.path(), &z])).unwrap();
    let order: Vec<_> = files.iter().map(|f| f.path.as_path()).collect();
    assert_eq!(order, [z.as_path(), a.as_path()]);
}

#[test]
fn every_mistake_is_reported_at_once_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/latin.yaml"), b"domain: caf\xe9").unwrap();
    symlink("nowhere", at("full/link.yaml")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let roots = [at("missing.yaml"), at("empty"), at("full"), at("socket")];
    let errors = read(&roots).unwrap_err();
    let shown: Vec<_> = errors
        .iter()
        .map(|e| e.to_string().replace(dir.path().to_str().unwrap(), "D"))
        .collect();
    assert_eq!(
        shown,
        [
            "D/missing.yaml: no such file or directory (name a config; without one it is ./sluice.yaml)",
            "D/empty: the directory has no *.yaml, *.yml or *.json file",
            "D/full/link.yaml: a symbolic link to something that does not exist",
            "D/socket: neither a file nor a directory",
            "D/full/latin.yaml: not UTF-8 text (byte 11)",
        ]
    );
}

#[test]
fn size_is_bounded_over_all_files() {
    let dir = tempfile::tempdir().unwrap();
    let half = vec![b'#'; MAX_BYTES as usize / 2];
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), &half).unwrap();
    fs::write(at("b.yaml"), &half).unwrap();
    let mut set = FileSet::new(&paths(&[dir.path()]));
    assert_eq!(set.scan(Trust::Stamps), Ok(true));
    fs::write(at("c.yaml"), "#").unwrap();
    let too_large = Err(vec![SourceError::TooLarge(at("c.yaml"))]);
    assert_eq!(set.refresh(&only(at("c.yaml"))), Some(too_large.clone()));
    assert_eq!(set.scan(Trust::Stamps), too_large);
    fs::remove_file(at("a.yaml")).unwrap();
    assert_eq!(set.scan(Trust::Stamps), Ok(true));
    assert_eq!(names(&set), ["b.yaml", "c.yaml"]);
}

#[test]
fn a_refresh_reads_only_the_given_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), "a").unwrap();
    fs::write(at("c.yaml"), "c").unwrap();
    let mut set = FileSet::new(&paths(&[dir.path()]));
    set.scan(Trust::Stamps).unwrap();

    fs::write(at("c.yaml"), "C").unwrap();
    fs::write(at("b.yaml"), "b").unwrap();
    // This file is not in the refreshed set, so its change is not read.
    fs::write(at("a.yaml"), "A").unwrap();
    let named = BTreeSet::from([at("b.yaml"), at("c.yaml")]);
    assert_eq!(set.refresh(&named), Some(Ok(true)));
    let texts: Vec<_> = set.files().into_iter().map(|f| f.text).collect();
    assert_eq!(texts, ["a", "b", "C"]);
    assert_eq!(set.refresh(&named), Some(Ok(false)));

    fs::remove_file(at("b.yaml")).unwrap();
    assert_eq!(set.refresh(&only(at("b.yaml"))), Some(Ok(true)));
    assert_eq!(names(&set), ["a.yaml", "c.yaml"]);
    assert_eq!(set.scan(Trust::Stamps), Ok(true));
    assert_eq!(set.files()[0].text, "A");
}

#[test]
fn a_failure_keeps_the_cache_and_needs_a_scan() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, "a").unwrap();
    let mut set = FileSet::new(&paths(&[&file]));
    set.scan(Trust::Stamps).unwrap();
    fs::remove_file(&file).unwrap();
    let missing = Err(vec![SourceError::Missing(file.clone())]);
    assert_eq!(set.refresh(&only(file.clone())), Some(missing));
    assert_eq!(set.files()[0].text, "a");
    fs::write(&file, "a").unwrap();
    assert_eq!(set.refresh(&only(file.clone())), None);
    assert_eq!(set.scan(Trust::Stamps), Ok(false));
}

#[test]
fn links_and_last_files_need_a_scan() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, "a").unwrap();
    let mut set = FileSet::new(&paths(&[dir.path()]));
    set.scan(Trust::Stamps).unwrap();
    let link = dir.path().join("b.yaml");
    symlink(&file, &link).unwrap();
    assert_eq!(set.refresh(&only(link.clone())), None);
    fs::remove_file(&link).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(set.refresh(&only(file)), None);
}

#[test]
fn a_truncated_file_is_an_error_until_it_has_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, "services: []").unwrap();
    let mut set = FileSet::new(&paths(&[&path]));
    assert_eq!(set.scan(Trust::Nothing), Ok(true));
    let emptied = Err(vec![SourceError::Emptied(path.clone())]);
    fs::write(&path, "").unwrap();
    assert_eq!(set.refresh(&only(path.clone())), Some(emptied.clone()));
    fs::write(&path, " \n").unwrap();
    assert_eq!(set.scan(Trust::Nothing), emptied);
    assert_eq!(set.files()[0].text, "services: []");
    fs::write(&path, "domain: x").unwrap();
    assert_eq!(set.scan(Trust::Stamps), Ok(true));
    assert_eq!(set.files()[0].text, "domain: x");
}
