//! From its making to its removal: places, processes, freezing, killing.

use super::*;

#[test]
fn a_cgroup_is_made_in_every_hierarchy_and_removed_without_a_trace() {
    let test = "made_and_removed";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let location = place.locate("a/b/c");
    let (cgroup, warnings) = location.create(None).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    for (_, path) in location.paths() {
        assert!(path.join("cgroup.procs").exists(), "{path:?}");
    }
    let mut child = shell(&cgroup, "sleep 1000");
    assert!(cgroup.processes().unwrap().contains(&(child.id() as i32)));
    cgroup.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    cgroup.remove().unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
    cgroup.remove().expect("removing what is gone");
    cgroup.kill().expect("killing what is gone");
    assert_eq!(location.open().unwrap().processes().unwrap(), Vec::<i32>::new());
    assert!(cgroup.add(1).is_err(), "joining what is gone");
}

#[test]
fn a_frozen_container_stands_still_and_can_be_thawed_and_killed() {
    let test = "freeze";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let (cgroup, _) = place.locate("c").create(None).unwrap();
    let log = std::env::temp_dir().join(&place.name);
    let mut child = shell(&cgroup, &format!("while :; do echo >> {}; done", log.display()));
    let size = || std::fs::metadata(&log).map_or(0, |data| data.len());
    let moves = |from: u64| size() > from;
    eventually("it runs", || moves(0));
    assert!(!cgroup.frozen().unwrap());
    cgroup.freeze().unwrap();
    assert!(cgroup.frozen().unwrap());
    let then = size();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(size(), then, "it moves while frozen");
    let error = place.locate("c/inner").create(None).err().unwrap();
    assert!(format!("{error:#}").contains("frozen"), "{error:#}");
    cgroup.thaw().unwrap();
    assert!(!cgroup.frozen().unwrap());
    eventually("it runs again", || moves(then));
    cgroup.freeze().unwrap();
    cgroup.signal_all(libc::SIGUSR1).unwrap();
    assert!(cgroup.frozen().unwrap(), "a signal does not thaw");
    cgroup.thaw().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGUSR1));
    let mut child = shell(&cgroup, "sleep 1000");
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    cgroup.remove().unwrap();
    std::fs::remove_file(&log).unwrap();
}

#[test]
fn a_cgroup_in_use_is_refused_with_the_number_of_its_processes() {
    let test = "in_use";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let early = place.locate("c");
    let (cgroup, _) = place.locate("c").create(None).unwrap();
    let mut child = shell(&cgroup, "sleep 1000 & wait");
    eventually("two processes", || cgroup.processes().unwrap().len() == 2);
    let error = early.create(None).err().unwrap();
    assert!(format!("{error:#}").contains("not empty: 2 process(es)"), "{error:#}");
    assert_eq!(cgroup.processes().unwrap().len(), 2, "the refusal left it alone");
    cgroup.kill().unwrap();
    child.wait().unwrap();
    // Empty, it is taken over, and stays when the second container goes.
    let (second, _) = {
        eventually("empty", || cgroup.processes().unwrap().is_empty());
        place.locate("c").create(None).unwrap()
    };
    second.remove().unwrap();
    assert!(!place.left().is_empty());
    cgroup.remove().unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn processes_of_sub_cgroups_are_found_killed_and_removed_with_them() {
    let test = "nested";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let location = place.locate("c");
    let (cgroup, _) = location.create(None).unwrap();
    let inner = place.locate("c/x/y").create(None).unwrap().0;
    let mut child = shell(&inner, "exec sleep 1000");
    assert_eq!(cgroup.processes().unwrap(), [child.id() as i32]);
    // As a later command would: from the record alone.
    let text = serde_json::to_string(&location).unwrap();
    let again = serde_json::from_str::<Location>(&text).unwrap();
    assert_eq!(again, location);
    let again = again.open().unwrap();
    again.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    again.remove().unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_half_made_cgroup_is_removed_from_its_record() {
    let test = "half_made";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let location = place.locate("p/c");
    // As if the runtime had been killed after its first mkdir calls.
    let first = location.paths().next().unwrap().1;
    std::fs::create_dir_all(first.parent().unwrap()).unwrap();
    let cgroup = location.open().unwrap();
    assert!(!cgroup.frozen().unwrap());
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_parent_with_processes_is_named_when_a_limit_needs_it() {
    let test = "busy_parent";
    if !offers(test, "-", "memory") {
        return;
    }
    let place = Place::new(test);
    let parent = place.locate("p").create(None).unwrap().0;
    let mut child = shell(&parent, "sleep 1000");
    let error = place
        .locate("p/c")
        .create(Some(&resources(r#"{"memory": {"limit": 16777216}}"#)))
        .err()
        .unwrap();
    let error = format!("{error:#}");
    assert!(
        error.contains("linux.resources.memory.limit") && error.contains("holds processes itself"),
        "{error}"
    );
    let (without, _) = place.locate("p/c").create(None).unwrap();
    without.remove().unwrap();
    let threaded = Place::new("threaded");
    let directory = Path::new(ROOT).join(&threaded.name);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("cgroup.type"), "threaded").unwrap();
    let error = threaded.locate("c").create(None).err().unwrap();
    assert!(format!("{error:#}").contains("a threaded cgroup"), "{error:#}");
    assert_eq!(
        std::fs::read_dir(&directory)
            .unwrap()
            .filter(|one| one.as_ref().unwrap().path().is_dir())
            .count(),
        0
    );
    parent.kill().unwrap();
    child.wait().unwrap();
    parent.remove().unwrap();
}

#[test]
fn without_the_right_to_a_cgroup_only_a_container_with_limits_fails() {
    let test = "rootless";
    if !unprivileged() {
        return skipped(test, "root may make cgroups");
    }
    let id = format!("unit-{}", std::process::id());
    let location = Location::locate(None, &id).unwrap();
    let limit = resources(r#"{"pids": {"limit": 30}, "devices": [{"allow": false}]}"#);
    let (cgroup, _) = location.create(None).unwrap();
    if !cgroup.exists() {
        assert!(cgroup.clone_fd().is_none());
        cgroup.add(std::process::id() as i32).unwrap();
        assert_eq!(cgroup.processes().unwrap(), Vec::<i32>::new());
        assert!(cgroup.freeze().is_err() && !cgroup.frozen().unwrap());
        let error = format!("{:#}", location.create(Some(&limit)).err().unwrap());
        assert!(error.contains("linux.resources.pids.limit needs"), "{error}");
        let how = if location.is_unified() { "Delegate=yes" } else { "chown -R" };
        assert!(error.contains(how), "{error}");
        let explicit = Location::locate(Some(Path::new("/ultari-unit/c")), &id).unwrap();
        let error = format!("{:#}", explicit.create(None).err().unwrap());
        assert!(error.contains("linux.cgroupsPath: cannot make"), "{error}");
    } else {
        // A delegated cgroup: limits hold, device rules are left out.
        eprintln!("{test}: delegated, {:?}", location.paths().collect::<Vec<_>>());
        cgroup.remove().unwrap();
        let (cgroup, _) = location.create(Some(&limit)).unwrap();
        assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "30");
        assert!(run(&cgroup, "true").success());
        cgroup.freeze().unwrap();
        cgroup.kill().unwrap();
    }
    cgroup.remove().unwrap();
    location.open().unwrap().remove().unwrap();
}

#[test]
fn paths_that_lead_out_or_nowhere_are_errors() {
    for bad in ["/a/../b", "..", "../x", "/", "./.", "/a\nb"] {
        let error = components(Path::new(bad)).unwrap_err().to_string();
        assert!(error.starts_with("linux.cgroupsPath"), "{bad}: {error}");
    }
    assert_eq!(components(Path::new("/docker/./x//y/")).unwrap(), ["docker", "x", "y"]);
    assert_eq!(components(Path::new("relative/x")).unwrap(), ["relative", "x"]);
}

#[test]
fn a_co_mounted_hierarchy_serves_each_of_its_controllers() {
    let one = Hierarchy::new("cpu,cpuacct".into(), Version::V1);
    assert!(
        one.has_v1_controller("cpu")
            && one.has_v1_controller("cpuacct")
            && !one.has_v1_controller("cpuset")
    );
    assert_eq!(one.path(&["a".into(), "b".into()], 2), "cpu,cpuacct/a/b");
    let unified = Hierarchy::new(String::new(), Version::V2);
    assert_eq!(
        (unified.path(&["a".into(), "b".into()], 1), unified.path(&[], 0)),
        ("a".into(), String::new())
    );
}

/// The time for one container's worth of calls, to look at by hand:
/// `cargo test --release cgroup::tests::cost -- --ignored --nocapture`.

#[test]
#[ignore = "a measurement"]
fn cost() {
    let place = Place::new("cost");
    let json = r#"{"devices": [{"allow": false, "access": "rwm"}], "memory": {"limit": 67108864}, "cpu": {"shares": 1024}, "pids": {"limit": 100}}"#;
    let resources = resources(json);
    let (keep, _) = place.locate("keep").create(None).unwrap();
    let mut steps = [Duration::ZERO; 5];
    for _ in 0..20 {
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut last = Instant::now();
        let mut lap = |step: usize| {
            steps[step] += last.elapsed();
            last = Instant::now();
        };
        let location = place.locate("c");
        lap(0);
        let (cgroup, _) = location.create(Some(&resources)).unwrap();
        lap(1);
        cgroup.add(child.id() as i32).unwrap();
        lap(2);
        location.open().unwrap().kill().unwrap();
        child.wait().unwrap();
        lap(3);
        cgroup.remove().unwrap();
        lap(4);
    }
    keep.remove().unwrap();
    let names = ["locate", "create", "add", "kill+wait", "remove"];
    names.iter().zip(steps).for_each(|(name, time)| eprintln!("{name}: {:?}", time / 20));
}
