"""The ten rules for drivers that Windows has to find before it reads a disk by its own means."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from fixtures.windows.hive_log import left_dirty_new, left_dirty_old
from packer.guest.judge import judge
from tests.formats.windows.make_pe import Form, program
from tests.guest.material import DirectExaminer
from tests.guest.windows.material import (
    CONFIG,
    DRIVERS,
    SYSTEM32,
    WINDOWS,
    Disk,
    Key,
    Seen,
    Vol,
    bios,
    driver,
    dword,
    hive_of,
    mounted_mbr,
    multi_sz,
    system,
    sz,
    windows,
    xp,
)

LeaveDirty = Callable[[bytes, bytes], tuple[bytes, bytes]]
DISK_CLASS = "{4D36E967-E325-11CE-BFC1-08002BE10318}"
KEYBOARD_CLASS = "{4D36E96B-E325-11CE-BFC1-08002BE10318}"


def sys(name: str, data: bytes = b"driver" * 200) -> dict[str, bytes]:
    return {f"{DRIVERS}/{name}.sys": data}


def seen(services: Mapping[str, Key], *names: str) -> Seen:
    """An XP with these services, and files of the default names."""
    return xp(services, {path: data for name in names for path, data in sys(name).items()}).judged()


def of_control(control: Key, *, services: Mapping[str, Key], files: dict[str, bytes]) -> Seen:
    found = xp({}, files)
    found.volumes[0].files[f"{CONFIG}/SYSTEM"] = hive_of(system(services, control=control))
    return found.judged()


@pytest.mark.parametrize("leave_dirty", [left_dirty_old, left_dirty_new])
def test_1_the_log_is_replayed_before_the_hive_is_asked(leave_dirty: LeaveDirty) -> None:
    before, after = (hive_of(system({"late": driver(start)})) for start in (3, 0))
    primary, log = leave_dirty(before, after)
    found = xp({}, {**sys("late"), f"{CONFIG}/SYSTEM.LOG1": log})
    found.volumes[0].files[f"{CONFIG}/SYSTEM"] = primary
    assert found.judged().rule(f"{DRIVERS}/late.sys") == "starts with Windows: service late"
    del found.volumes[0].files[f"{CONFIG}/SYSTEM.LOG1"]
    stale = found.judged()
    assert stale.group(f"{DRIVERS}/late.sys") == ""
    assert "what it says may be out of date" in stale.warning("no log of it helps")


def test_2_every_control_set_that_may_start_counts() -> None:
    root = system({"now": driver()}, last_known_good={"then": driver(), "now": driver(3)})
    root.subkeys["ControlSet003"] = Key({}, {"Services": Key({}, {"never": driver()})})
    files = sys("now") | sys("then") | sys("never")
    found = xp({}, files)
    found.volumes[0].files[f"{CONFIG}/SYSTEM"] = hive_of(root)
    judged = found.judged()
    assert judged.group(f"{DRIVERS}/now.sys") == judged.group(f"{DRIVERS}/then.sys") == "drivers"
    assert judged.group(f"{DRIVERS}/never.sys") == ""


def test_2_without_a_choice_of_control_sets_all_of_them_count() -> None:
    root = system({"now": driver()})
    root.subkeys["Select"] = Key({"Current": dword(7)})
    found = xp({}, sys("now"))
    found.volumes[0].files[f"{CONFIG}/SYSTEM"] = hive_of(root)
    assert found.judged().group(f"{DRIVERS}/now.sys") == "drivers"


def test_3_drivers_of_all_types_start_at_boot_and_nothing_else() -> None:
    services = {
        "kernel": driver(type=1),
        "filesystem": driver(type=2),
        "recognizer": driver(type=8),
        "process": driver(type=16),
        "atsystem": driver(1),
        "disabled": driver(4),
    }
    judged = seen(services, *services)
    inside = {name for name in services if judged.group(f"{DRIVERS}/{name}.sys")}
    assert inside == {"kernel", "filesystem", "recognizer"}


@pytest.mark.parametrize(
    ("image", "path"),
    [
        (None, f"{DRIVERS}/One.sys"),
        ("system32\\DRIVERS\\x.sys", f"{DRIVERS}/x.sys"),
        ("SYSTEM32\\drivers\\X.SYS", f"{DRIVERS}/x.sys"),
        ("\\SystemRoot\\System32\\drivers\\x.sys", f"{DRIVERS}/x.sys"),
        ("%SystemRoot%\\vendor\\x.sys", f"{WINDOWS}/vendor/x.sys"),
        ("%windir%\\vendor\\x.sys", f"{WINDOWS}/vendor/x.sys"),
        ("%SystemDrive%\\vendor\\x.sys", "/vendor/x.sys"),
        ("\\??\\C:\\vendor\\x.sys", "/vendor/x.sys"),
        ("\\??\\c:\\Vendor\\x.sys", "/vendor/x.sys"),
        ("\\\\?\\C:\\vendor\\x.sys", "/vendor/x.sys"),
        ("\\DosDevices\\C:\\vendor\\x.sys", "/vendor/x.sys"),
        ("C:\\vendor\\x.sys", "/vendor/x.sys"),
        ("\\vendor\\x.sys", "/vendor/x.sys"),
        ('"\\SystemRoot\\System32\\drivers\\x.sys" -k', f"{DRIVERS}/x.sys"),
    ],
)
def test_4_the_registry_writes_paths_in_many_ways(image: str | None, path: str) -> None:
    judged = xp({"One": driver(image=image)}, {path: b"driver" * 200}).judged()
    assert judged.group(path) == "drivers"
    assert not any("not there" in one for one in judged.judgement.warnings if "driver" in one)


def test_4_a_drive_letter_leads_to_the_volume_that_the_registry_says() -> None:
    guid = "\\??\\Volume{656b1715-ecf6-11df-92e6-806e6f6e6963}"
    services = {
        "far": driver(image="\\??\\E:\\tools\\far.sys"),
        "farther": driver(image=f"{guid}\\tools\\farther.sys"),
        "nowhere": driver(image="\\??\\F:\\tools\\far.sys"),
    }
    tools = {f"/tools/{name}.sys": name.encode() * 300 for name in services}
    first = Vol({"/ntldr": b"ntldr" * 300, **windows(system(), tools, None)})
    found = Disk([first, Vol({**tools, "/x": b"x"})])
    start = found.survey()[0].volumes[1].start
    devices = {"\\DosDevices\\E:": mounted_mbr(start), guid: mounted_mbr(start)}
    first.files[f"{CONFIG}/SYSTEM"] = hive_of(system(services, devices=devices))
    judgement = found.judged().judgement
    survey = found.survey()[0]
    assert found.survey()[0].volumes[1].start == start
    boot = {
        (int(survey.volume[row]), path)
        for row, path in zip(survey.name_stream.tolist(), judgement.path, strict=True)
        if judgement.boot[row] >= 0 and path.startswith("/tools")
    }
    assert boot == {(1, "/tools/far.sys"), (1, "/tools/farther.sys")}


@pytest.mark.parametrize(
    "image",
    [
        "..\\..\\secret.sys",
        "\\SystemRoot\\..\\secret.sys",
        "\\??\\C:\\Windows\\.\\secret.sys",
        "\\Device\\HarddiskVolume1\\secret.sys",
        "\\\\server\\share\\secret.sys",
        "\\??\\UNC\\server\\secret.sys",
        "x" * 5000,
        "",
        "\\",
        "C:",
    ],
)
def test_4_a_path_that_leads_elsewhere_leads_nowhere(image: str) -> None:
    paths = ("/secret.sys", "/server/share/secret.sys", f"{WINDOWS}/secret.sys")
    judged = xp({"odd": driver(image=image)}, dict.fromkeys(paths, b"s" * 900)).judged()
    assert not judged.boot() & set(paths)


@pytest.mark.parametrize(("kind", "service"), [("ntfs", "Ntfs"), ("vfat", "Fastfat")])
def test_5_the_boot_volumes_own_file_system_is_read_whatever_its_start(
    kind: str, service: str
) -> None:
    services = {"Ntfs": driver(4, type=2), "Fastfat": driver(4, type=2)}
    found = xp(services, sys("ntfs") | sys("fastfat"))
    found.volumes[0].kind = kind
    judged = found.judged()
    assert judged.boot() & {f"{DRIVERS}/ntfs.sys", f"{DRIVERS}/fastfat.sys"} == {
        f"{DRIVERS}/{service.lower()}.sys"
    }
    assert judged.rule(f"{DRIVERS}/{service.lower()}.sys").startswith("reads the boot volume")


def test_6_a_driver_of_no_group_or_an_unknown_one_is_loaded_last_not_never() -> None:
    services = {
        "none": driver(),
        "unknown": driver(Group=sz("Vendor filters")),
        "known": driver(Group=sz("Base")),
    }
    order = Key({}, {"ServiceGroupOrder": Key({"List": multi_sz(["Base"])})})
    files = sys("none") | sys("unknown") | sys("known")
    judged = of_control(order, services=services, files=files)
    assert {f"{DRIVERS}/{name}.sys" for name in services} <= judged.boot()


def test_7_what_suits_the_present_hardware_suits_no_other() -> None:
    overridden = driver()
    overridden.put("StartOverride").values["0"] = dword(3)
    services = {
        "demoted": overridden,
        "overnet": driver(3, BootFlags=dword(1)),
        "plain": driver(3, BootFlags=dword(0)),
    }
    judged = seen(services, *services)
    assert judged.rule(f"{DRIVERS}/demoted.sys") == "starts with Windows: service demoted"
    assert "boots from such a device" in judged.rule(f"{DRIVERS}/overnet.sys")
    assert judged.group(f"{DRIVERS}/plain.sys") == ""


def test_8_drivers_of_critical_devices() -> None:
    control = Key()
    control.put("CriticalDeviceDatabase\\pci#ven_1af4", Service=sz("VIOSTOR"))
    control.put("CriticalDeviceDatabase\\pci#ven_0000", Service=sz("notthere"))
    services = {"viostor": driver(3), "other": driver(3)}
    judged = of_control(control, services=services, files=sys("viostor") | sys("other"))
    assert judged.rule(f"{DRIVERS}/viostor.sys") == "drives a critical device: service viostor"
    assert judged.group(f"{DRIVERS}/other.sys") == ""
    assert not [one for one in judged.judgement.warnings if "notthere" in one]


@pytest.mark.parametrize("value", ["UpperFilters", "LowerFilters"])
def test_8_filters_of_disks_and_buses(value: str) -> None:
    control = Key()
    control.key(f"Class\\{DISK_CLASS}").values[value] = multi_sz(["partmgr", "vendorfl"])
    control.key(f"Class\\{KEYBOARD_CLASS}").values[value] = multi_sz(["kbdclass"])
    services = {"vendorfl": driver(3), "kbdclass": driver(1)}
    judged = of_control(control, services=services, files=sys("vendorfl") | sys("kbdclass"))
    assert judged.rule(f"{DRIVERS}/vendorfl.sys") == "filters disks and buses: service vendorfl"
    assert judged.group(f"{DRIVERS}/kbdclass.sys") == ""


def packages() -> Key:
    root = Key()
    path = "DriverDatabase\\DriverPackages"
    root.put(f"{path}\\vioscsi.inf_amd64_01", BootCritical=dword(1))
    root.put(f"{path}\\netkvm.inf_amd64_02", BootCritical=dword(0))
    return root


@pytest.mark.parametrize("own_hive", [True, False], ids=["DRIVERS", "SYSTEM"])
def test_8_packages_that_are_critical_for_the_start(own_hive: bool) -> None:
    store = f"{SYSTEM32}/DriverStore/FileRepository"
    files = {
        f"{store}/vioscsi.inf_amd64_01/vioscsi.sys": b"driver" * 200,
        f"{store}/vioscsi.inf_amd64_01/vioscsi.inf": b"inf" * 400,
        f"{store}/netkvm.inf_amd64_02/netkvm.sys": b"driver" * 200,
    }
    further = {} if own_hive else packages().subkeys
    everything = windows(system(further=further), files)
    if own_hive:
        everything[f"{CONFIG}/DRIVERS"] = hive_of(packages())
    judged = bios(everything).judged()
    inside = {path for path in files if judged.group(path) == "drivers"}
    assert inside == set(list(files)[:2])


def test_9_what_drivers_import_is_in_the_set_to_the_last_one() -> None:
    files = {
        f"{DRIVERS}/disk.sys": program(Form(imports=("ntoskrnl.exe", "CLASSPNP.SYS"))),
        f"{DRIVERS}/classpnp.sys": program(Form(delay_imports=("Late.sys",))),
        f"{DRIVERS}/late.sys": program(Form(forwarders=("deep.Function",))),
        f"{SYSTEM32}/deep.dll": program(Form(imports=("disk.sys", "deep.dll"))),
        f"{DRIVERS}/both.sys": program(Form(tail=b"in drivers")),
        f"{SYSTEM32}/both.sys": program(Form(tail=b"in System32")),
        f"{DRIVERS}/first.sys": program(
            Form(imports=("both.sys", "absent.sys", "ext-ms-win-x.dll"))
        ),
        f"{DRIVERS}/unused.sys": program(Form()),
    }
    judged = xp({"disk": driver(), "first": driver()}, files).judged()
    assert judged.rule(f"{DRIVERS}/classpnp.sys") == "imported: by disk.sys"
    assert judged.rule(f"{DRIVERS}/late.sys") == "imported: by classpnp.sys"
    assert judged.rule(f"{SYSTEM32}/deep.dll") == "imported: by late.sys"
    assert judged.group(f"{SYSTEM32}/deep.dll") == "kernel"
    assert judged.group(f"{DRIVERS}/both.sys") == "drivers"
    assert judged.group(f"{SYSTEM32}/both.sys") == judged.group(f"{DRIVERS}/unused.sys") == ""
    assert judged.warning("imports what is not there").endswith(": absent.sys (by first.sys)")


def test_9_what_a_compressed_driver_imports_is_not_known_and_said() -> None:
    data = program(Form(imports=("x.sys",)))
    found = xp({"disk": driver()}, sys("disk", data) | sys("x"), stored=(f"{DRIVERS}/disk.sys",))
    judged = found.judged()
    assert judged.group(f"{DRIVERS}/disk.sys") == "drivers"
    assert "1 programs of the boot set are stored compressed" in judged.warning("compressed: what")


@pytest.mark.parametrize("error", [0, 1])
def test_10_some_drivers_may_be_missing(error: int) -> None:
    judged = seen({"gone": driver(error=error)})
    assert judged.judgement.errors == ()
    assert judged.warning("starts without").endswith(f": gone ({DRIVERS}/gone.sys)")


@pytest.mark.parametrize("error", [2, 3])
def test_10_without_others_nothing_starts(error: int) -> None:
    judged = seen({"gone": driver(error=error, image="System32\\drivers\\gone.sys")})
    assert judged.judgement.errors == (
        f"this guest would not start: {DRIVERS}/gone.sys is not there, the driver of the service"
        f" gone, which starts at boot with ErrorControl {error}",
    )


def test_10_a_missing_driver_of_an_old_control_set_stops_nothing() -> None:
    found = xp({}, {})
    root = system({}, last_known_good={"gone": driver(error=3)})
    found.volumes[0].files[f"{CONFIG}/SYSTEM"] = hive_of(root)
    judged = found.judged()
    assert judged.judgement.errors == ()
    assert "gone" in judged.warning("starts without")


def test_10_where_no_kernel_is_no_driver_is_missed() -> None:
    found = xp({"gone": driver(error=3)}, {})
    del found.volumes[0].files[f"{SYSTEM32}/ntoskrnl.exe"]
    judged = found.judged()
    assert judged.judgement.errors == ()
    assert "no kernel" in judged.warning("would not boot by itself")


def test_a_newer_windows_takes_every_driver_for_other_hardware_along() -> None:
    files = {f"{DRIVERS}/wd/deep.sys": b"driver" * 200, f"{DRIVERS}/etc/hosts": b"x" * 800}
    files |= sys("any")
    judged = bios(windows(system({"first": driver()}), files | sys("first"))).judged()
    assert judged.rule(f"{DRIVERS}/any.sys") == "any driver, for other hardware"
    assert judged.group(f"{DRIVERS}/wd/deep.sys") == "drivers"
    assert judged.rule(f"{DRIVERS}/first.sys") == "starts with Windows: service first"
    assert judged.group(f"{DRIVERS}/etc/hosts") == ""


def test_without_a_registry_every_driver_is_taken_along() -> None:
    found = xp({}, sys("any") | {f"{SYSTEM32}/other.sys": b"x" * 900})
    found.volumes[0].files[f"{CONFIG}/SYSTEM"] = b"no hive" * 1000
    judged = found.judged()
    assert judged.group(f"{DRIVERS}/any.sys") == judged.group(f"{SYSTEM32}/other.sys") == "drivers"
    assert "cannot be read" in judged.warning("config/SYSTEM")


def test_a_file_with_several_names_is_in_the_set_whichever_name_is() -> None:
    path, other = f"{DRIVERS}/one.sys", "/Windows/WinSxS/amd64_one/one.sys"
    found = xp({"one": driver()}, {other: b"driver" * 200}, hard_links={path: other})
    judged = found.judged()
    assert judged.group(path) == judged.group(other) == "drivers"


def test_all_streams_of_a_file_are_in_the_set() -> None:
    """CompactOS keeps the bytes of a compressed file in a stream beside the empty one."""
    path = f"{DRIVERS}/one.sys"
    found = xp({"one": driver()}, {path: b"", f"{path}:WofCompressedData": b"z" * 900})
    survey, source = found.survey()
    rows = {name: row for row, name in enumerate(survey.name)}
    survey.inode[survey.name_stream[rows[f"{path}:WofCompressedData"]]] = survey.inode[
        survey.name_stream[rows[path]]
    ]
    judged = Seen(survey, judge(survey, source, DirectExaminer(survey, source)))
    assert judged.group(f"{path}:WofCompressedData") == "drivers"


def test_the_first_rule_that_fits_is_the_one_that_is_told() -> None:
    control = Key()
    control.put("CriticalDeviceDatabase\\a", Service=sz("one"))
    judged = of_control(control, services={"one": driver()}, files=sys("one"))
    assert judged.rule(f"{DRIVERS}/one.sys") == "starts with Windows: service one"
