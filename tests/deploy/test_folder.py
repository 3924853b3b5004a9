import shutil

import pytest

from fedfusion.deploy import init
from fedfusion.deploy.folder import Deployment, Device
from fedfusion.types import FedfusionError


@pytest.fixture
def deployment(tmp_path):
    return init.create(tmp_path / "deploy", 3, [], 42100)


def test_a_folder_without_a_deployment_names_the_command(tmp_path):
    with pytest.raises(FedfusionError, match="fedfusion deploy init --dir .*none"):
        Deployment.at(tmp_path / "none")


@pytest.mark.parametrize("text", ["port = 1", "hosts = []", "hosts = [", 'hosts = []\nport = "x"'])
def test_settings_that_cannot_be_read_are_named(deployment, text):
    (deployment.home / "deploy.toml").write_text(text)
    with pytest.raises(FedfusionError, match="deploy.toml needs hosts and port"):
        Deployment.at(deployment.home)


def test_devices_have_ports_of_their_own_after_that_of_the_superlink(deployment):
    devices = deployment.devices()
    assert [device.name for device in devices] == ["node-0", "node-1", "node-2"]
    assert [deployment.node_port(device) for device in devices] == [42101, 42102, 42103]


def test_a_device_whose_folder_is_gone_leaves_the_others_what_they_are(deployment):
    shutil.rmtree(deployment.device(0).folder)
    for name in ("node-10", "node-x", "node-1.old"):
        (deployment.home / "nodes" / name).mkdir()
    devices = deployment.devices()
    assert [device.name for device in devices] == ["node-1", "node-2", "node-10"]
    assert deployment.node_port(devices[0]) == 42102 and devices[0].settings()["partition-id"] == 1


def test_fresh_settings_make_each_device_a_part_of_the_whole(deployment):
    found = [device.settings() for device in deployment.devices()]
    assert found == [{"data-path": "data", "partition-id": i, "num-partitions": 3} for i in range(3)]


WHOLE = 'data-path = "data"\npartition-id = 0\nnum-partitions = 2\n'


def test_what_an_owner_may_set_is_read(deployment):
    device = deployment.device(0)
    device.settings_file.write_text(
        WHOLE + 'tasks = "emnist"\nmax-steps = 9\nmax-memory-mb = 900\nallowed-targets = "shipped"\n'
    )
    assert device.settings()["max-steps"] == 9 and device.settings()["tasks"] == "emnist"


@pytest.mark.parametrize(
    "text, why",
    [
        (WHOLE.replace('data-path = "data"', ""), "'data-path' is missing .*name the folder of its own data"),
        (WHOLE.replace('"data"', '""'), "'data-path' is missing"),
        (WHOLE.replace('"data"', '"absent"'), "data-path=absent is no folder"),
        (WHOLE + "max_steps = 4", "'max_steps' is no setting .*max-steps"),
        (WHOLE + 'max-steps = "4"', "'max-steps' must be a whole number, got '4'"),
        (WHOLE + "max-steps = true", "'max-steps' must be a whole number, got True"),
        (WHOLE + "max-memory-mb = 0", "'max-memory-mb' must be at least 1, got 0"),
        (WHOLE + "tasks = 4", "'tasks' must be text, got 4"),
        (WHOLE.replace("partition-id = 0", "partition-id = 2"), "partition-id=2, num-partitions=2"),
        (WHOLE.replace("partition-id = 0", "partition-id = -1"), "partition-id=-1, num-partitions=2"),
        (WHOLE.replace("num-partitions = 2", ""), "'num-partitions' is missing"),
        ("tasks = [", "cannot be read"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_name_of_the_device(deployment, text, why):
    device = deployment.device(1)
    device.settings_file.write_text(text)
    with pytest.raises(FedfusionError, match=f"^node-1: .*{why}"):
        device.settings()


def test_a_device_without_settings_is_named(tmp_path):
    with pytest.raises(FedfusionError, match="^node-7: .*node.toml cannot be read"):
        Device("node-7", tmp_path).settings()


def test_flower_reads_the_settings_file_as_its_node_configuration(deployment):
    from flwr.common.config import parse_config_args

    device = deployment.device(2)
    assert parse_config_args([str(device.settings_file)]) == device.settings()
