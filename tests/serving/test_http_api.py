"""The HTTP interface with a runner that makes no videos."""

import io

import pytest
from starlette.testclient import TestClient

from fv_jax.core import files
from fv_jax.serving.estimates import Cost, Estimator
from fv_jax.serving.http_api import create_app
from fv_jax.serving.job_server import JobServer
from fv_jax.serving.job_store import JobStore
from fv_jax.serving.keys import Keys
from fv_jax.serving.runner import Work
from tests.serving.fake_runner import NUM_STEPS, FakeRunner


def test_preview_is_created_polled_and_downloaded(user):
    created = user.create('a dog', seed=3)
    assert created['object'] == 'video' and created['status'] in ('queued', 'in_progress')
    assert (created['model'], created['prompt'], created['seed']) == ('flashvideo-preview', 'a dog', 3)
    assert (created['size'], created['seconds'], created['num_steps']) == ('96x64', '2.125', NUM_STEPS)
    done = user.wait(created)
    assert (done['progress'], done['seconds_left'], done['error']) == (100, None, None)
    assert done['created_at'] <= done['started_at'] <= done['completed_at']
    response = user('GET', f'/videos/{done["id"]}/content?download=true')
    assert response.text == "preview of 'a dog', seed 3" and response.headers['content-type'] == 'video/mp4'
    assert 'attachment; filename="a_dog_preview_seed3.mp4"' in response.headers['content-disposition']


def test_preview_is_enhanced_and_made_again(user):
    preview = user.wait(user.create('a dog', seed=3))
    enhanced = user.wait(user('POST', f'/videos/{preview["id"]}/enhance'))
    assert (enhanced['kind'], enhanced['size'], enhanced['seed']) == ('enhance', '384x256', 3)
    assert enhanced['source_video_id'] == preview['id']
    assert user('GET', f'/videos/{enhanced["id"]}/content').text.startswith('enhance of')
    assert user('GET', f'/videos/{enhanced["id"]}/content?variant=source').text.startswith('preview of')
    again = user('POST', f'/videos/{enhanced["id"]}/remix', json={'seed': 4})
    assert (again['kind'], again['size'], again['seed']) == ('enhance', '384x256', 4)
    other = user('POST', f'/videos/{preview["id"]}/remix', json={'prompt': 'a cat'})
    assert (other['prompt'], other['seed'], other['remixed_from_video_id']) == ('a cat', 3, preview['id'])
    assert 'has a prompt of its own' in user.refused(
        400, 'POST', f'/videos/{enhanced["id"]}/remix', json={'prompt': 'x'}
    )


def test_upload_is_enhanced_and_removed_with_its_last_job(serve, tmp_path):
    with serve() as (user, _):
        form = {
            'data': {'model': 'flashvideo-clip', 'seed': '7'},
            'files': {'input_reference': ('my clip.mp4', b'data')},
        }
        job = user.wait(user('POST', '/videos', **form))
        assert (job['kind'], job['seed'], job['source_name']) == ('clip', 7, 'my clip.mp4')
        assert user('GET', f'/videos/{job["id"]}/content?variant=source').content == b'data'
        again = user.wait(user('POST', f'/videos/{job["id"]}/remix'))
        uploads = tmp_path / 'jobs' / 'uploads'
        user('DELETE', f'/videos/{job["id"]}')
        assert len(list(uploads.iterdir())) == 1
        user('DELETE', f'/videos/{again["id"]}')
        assert not list(uploads.iterdir()) and not list((tmp_path / 'jobs' / 'results').iterdir())


@pytest.mark.parametrize(
    ('fields', 'found'),
    [
        ({}, 'prompt: is missing'),
        ({'prompt': '  '}, "prompt='  ': is empty"),
        ({'prompt': 'x' * 51}, 'has 51 characters; use at most 50'),
        ({'prompt': 'a', 'seed': -1}, 'seed=-1: must be an integer from 0 to'),
        ({'prompt': 'a', 'seed': 'x'}, "seed='x'"),
        ({'prompt': 'a', 'size': '64'}, "size='64': give WIDTHxHEIGHT"),
        ({'prompt': 'a', 'size': '96x65'}, 'height=65: must be a multiple of 16'),
        ({'prompt': 'a', 'num_steps': 101}, 'num_steps=101: must be from 1 to 100'),
        ({'prompt': 'a', 'model': 'sora'}, "model='sora'"),
        ({'prompt': 'a', 'num_step': 3}, 'num_step: is not known; use model, prompt, seed, size, frames, num_steps'),
        ({'model': 'flashvideo-clip'}, 'input_reference: is missing'),
    ],
)
def test_refused_values_are_named_with_their_limit(user, fields, found):
    assert found in user.refused(400, 'POST', '/videos', json=fields)
    assert user('GET', '/videos')['data'] == []


def test_other_errors_have_their_status(user):
    assert 'no JSON' in user.refused(400, 'POST', '/videos', content=b'{')
    assert 'video_0: no such video' in user.refused(404, 'GET', '/videos/video_0')
    assert "limit='0'" in user.refused(400, 'GET', '/videos?limit=0')
    assert 'GET /v1/nothing' in user.refused(404, 'GET', '/nothing')
    failed = user.wait(user.create('this fails'), 'failed')
    assert failed['error'] == {'code': 'failed', 'message': 'the video has values that are not finite'}
    assert 'is failed' in user.refused(409, 'GET', f'/videos/{failed["id"]}/content')
    assert 'is failed already' in user.refused(409, 'POST', f'/videos/{failed["id"]}/cancel')
    assert 'is failed; enhance it once completed' in user.refused(409, 'POST', f'/videos/{failed["id"]}/enhance')


@pytest.mark.parametrize(
    ('name', 'data', 'status', 'found'),
    [
        ('notes.txt', b'text', 415, 'notes.txt: is no video or image'),
        ('../../etc/passwd', b'text', 415, 'passwd: is no video or image'),
        ('clip.mp4', b'', 415, 'clip.mp4: is empty'),
        ('clip.mp4', bytes(100_001), 413, 'clip.mp4: has more than 98 KB'),
        ('clip.mp4', bytes(2_000_000), 413, 'larger than'),
    ],
)
def test_wrong_and_large_uploads_are_refused(serve, tmp_path, name, data, status, found):
    with serve() as (user, _):
        form = {'data': {'model': 'flashvideo-clip'}, 'files': {'input_reference': (name, data)}}
        message = user.refused(status, 'POST', '/videos', **form)
        assert found.replace('98 KB', files.format_bytes(100_000)) in message
        assert not list((tmp_path / 'jobs' / 'uploads').iterdir())


def test_body_without_a_stated_length_is_limited(user):
    def chunks():
        for _ in range(30):
            yield bytes(100_000)

    assert 'larger than' in user.refused(413, 'POST', '/videos', content=chunks())


def test_users_are_apart(users):
    one, other = users
    mine = one.wait(one.create('mine'))['id']
    for method, path in (
        ('GET', ''),
        ('GET', '/content'),
        ('GET', '/content?variant=source'),
        ('POST', '/enhance'),
        ('POST', '/remix'),
        ('POST', '/cancel'),
        ('DELETE', ''),
    ):
        assert 'no such video' in other.refused(404, method, f'/videos/{mine}{path}')
    assert other('GET', '/videos')['data'] == [] and [job['id'] for job in one('GET', '/videos')['data']] == [mine]
    assert 'no such video' in other.refused(404, 'GET', f'/videos?after={mine}')


def test_list_is_paged_in_both_orders(user):
    made = [user.create(f'dog {i}')['id'] for i in range(5)]
    first = user('GET', '/videos?limit=2')
    assert [job['id'] for job in first['data']] == made[:2:-1] and first['has_more']
    rest = user('GET', f'/videos?limit=3&after={first["last_id"]}')
    assert [job['id'] for job in rest['data']] == made[2::-1] and not rest['has_more']
    assert [job['id'] for job in user('GET', '/videos?order=asc')['data']] == made


def test_queue_shows_position_time_left_and_cost(serve):
    runner = FakeRunner(manual=True, planned=10.0)
    with serve(runner) as (user, other):
        jobs = [user.create('one'), other.create('two'), user.create('three')]
        runner.let_step(2)
        running = user.wait(jobs[0], 'in_progress')
        while running['progress'] != 50:
            running = user('GET', f'/videos/{jobs[0]["id"]}')
        assert (running['queue_position'], running['seconds_left'], running['compiles']) == (None, 5.0, True)
        last = user('GET', f'/videos/{jobs[2]["id"]}')
        assert (last['queue_position'], last['seconds_left'], last['progress']) == (2, 25.0, 0)
        assert not last['compiles'], 'it does not run yet'
        assert last['cost'] == {'seconds': 10.0, 'chip_seconds': 20.0, 'basis': 'planned'}
        runner.let_step(6)
        assert not user.wait(jobs[2], 'in_progress')['compiles'], 'another one of its shape has run'
        runner.let_step(4)
        done = user.wait(jobs[2])
        assert done['cost']['basis'] == 'measured' and done['cost']['seconds'] < 5
        assert done['enhance_cost'] == {'seconds': 10.0, 'chip_seconds': 20.0, 'basis': 'planned'}


def test_cost_without_a_plan_is_scaled_from_measured_jobs(user):
    assert user.create('one')['cost'] is None
    first = user.wait(user('GET', '/videos')['data'][0])
    assert first['cost']['basis'] == 'measured' and first['enhance_cost']['basis'] == 'scaled'
    ratio = first['enhance_cost']['seconds'] / first['cost']['seconds']
    assert ratio == pytest.approx(16)


def test_cancel_stops_at_the_next_step(serve):
    runner = FakeRunner(manual=True)
    with serve(runner) as (user, _):
        running, queued = user.create('one'), user.create('two')
        user.wait(running, 'in_progress')
        assert user('POST', f'/videos/{queued["id"]}/cancel')['status'] == 'cancelled'
        user('POST', f'/videos/{running["id"]}/cancel')
        assert user('GET', f'/videos/{running["id"]}')['status'] == 'in_progress', 'until a step ends'
        runner.let_step()
        assert user.wait(running, 'cancelled')['progress'] == 0
        assert [request.prompt for request in runner.ran] == ['one']
        assert user('POST', f'/videos/{queued["id"]}/cancel')['status'] == 'cancelled', 'again changes nothing'
        runner.let_step(NUM_STEPS)
        user.wait(user.create('three'))


def test_deleting_cancels_and_a_preview_that_is_enhanced_stays(serve, tmp_path):
    runner = FakeRunner(manual=True)
    with serve(runner) as (user, _):
        runner.let_step(NUM_STEPS)
        preview = user.wait(user.create('one'))['id']
        enhanced = user('POST', f'/videos/{preview}/enhance')['id']
        user.wait(enhanced, 'in_progress')
        assert f'is enhanced by {enhanced}' in user.refused(409, 'DELETE', f'/videos/{preview}')
        assert user('DELETE', f'/videos/{enhanced}') == {'id': enhanced, 'object': 'video.deleted', 'deleted': True}
        user.refused(404, 'GET', f'/videos/{enhanced}')
        user('DELETE', f'/videos/{preview}')
        runner.let_step(1 + NUM_STEPS)
        user.wait(user.create('two'))
        assert len(list((tmp_path / 'jobs' / 'results').iterdir())) == 1


def test_waiting_jobs_of_a_user_are_limited(serve):
    runner = FakeRunner(manual=True)
    with serve(runner) as (user, other):
        for i in range(6):
            user.create(f'dog {i}')
        assert '6 jobs wait' in user.refused(429, 'POST', '/videos', json={'prompt': 'one more'})
        other.create('not limited')
        runner.let_step(7 * NUM_STEPS)


def test_stopped_server_returns_its_job_to_the_queue(serve):
    runner = FakeRunner(step_seconds=0.01)
    with serve(runner) as (user, _):
        running, queued = user.create('one', num_steps=100), user.create('two')
        user.wait(running, 'in_progress')
        headers = user._headers
    assert [request.prompt for request in runner.ran] == ['one']
    second = FakeRunner()
    with serve(second) as (user, _):
        user._headers = headers  # keys stay valid
        user.wait(queued)
        assert user.wait(running)['id'] == running['id']
    assert [request.prompt for request in second.ran] == ['one', 'two'] and second.loaded == 1


def make_client(tmp_path, password=None, **options):
    server = JobServer(tmp_path / 'jobs', FakeRunner())
    keys = Keys(server.store.read_secret('keys'), password)
    return TestClient(create_app(server, keys, **options))


def test_keys_are_needed_and_signed(tmp_path):
    with make_client(tmp_path) as client:
        assert client.get('/health').status_code == 200
        assert 'POST /v1/keys' in client.get('/v1/videos').json()['error']['message']
        key = client.post('/v1/keys').json()['key']
        assert client.get('/v1/videos', headers={'Authorization': f'Bearer {key}'}).status_code == 200
        forged = key[:3] + ('0' * 32) + key[35:]
        for wrong in (forged, key + '0', 'x', ''):
            response = client.get('/v1/videos', headers={'Authorization': f'Bearer {wrong}'})
            assert response.status_code == 401, wrong


def test_password_is_needed_for_a_key(tmp_path):
    with pytest.raises(ValueError, match='has 5 characters'):
        Keys(b'', 'short')
    with make_client(tmp_path, 'long enough') as client:
        assert client.post('/v1/keys').status_code == 401
        assert client.post('/v1/keys', json={'password': 'long enougH'}).status_code == 401
        key = client.post('/v1/keys', json={'password': 'long enough'}).json()['key']
        assert client.get('/v1/videos', headers={'Authorization': f'Bearer {key}'}).status_code == 200
        assert client.get('/', follow_redirects=False).headers['location'] == '/login'
    with make_client(tmp_path, 'another one') as client:
        assert client.get('/v1/videos', headers={'Authorization': f'Bearer {key}'}).status_code == 401


def test_requests_of_other_pages_and_hosts_are_refused(tmp_path):
    with make_client(tmp_path, allowed_hosts=['127.0.0.1']) as client:
        assert client.get('/health').status_code == 400, 'Host: testserver'
        client.base_url = 'http://127.0.0.1:7860'
        client.get('/')
        assert client.cookies, 'the first page sets a cookie'
        assert client.get('/v1/videos').status_code == 200
        body = {'json': {'prompt': 'a dog'}}
        assert client.post('/v1/videos', headers={'Origin': 'http://127.0.0.1:7860'}, **body).status_code == 200
        for origin in ('https://example.com', 'http://127.0.0.1:9999', 'null'):
            assert client.post('/v1/videos', headers={'Origin': origin}, **body).status_code == 403, origin
        assert client.post('/v1/videos', headers={'Host': 'example.com'}, **body).status_code == 400


def test_second_server_on_a_folder_is_refused(serve, tmp_path):
    with serve(), pytest.raises(ValueError, match='another server works on this folder'):
        JobServer(tmp_path / 'jobs', FakeRunner())


def test_upload_through_the_server_object_keeps_no_path(serve, tmp_path):
    server = JobServer(tmp_path / 'direct', FakeRunner())
    job = server.create_clip('u', '..\\..\\a/../clip.png', io.BytesIO(b'x'))
    assert job.request.source_name == 'clip.png' and '/' not in job.request.source and job.request.is_image
    server.start()
    server.stop()


def test_first_job_of_a_shape_counts_only_where_there_is_no_other(tmp_path):
    store = JobStore(tmp_path / 'jobs.sqlite3')
    preview, video, other = Work('preview', 'a', 10.0), Work('enhance', 'b', 40.0), Work('enhance', 'c', 80.0)
    assert store.median_seconds('cpu', 'a') is None and store.measured_rate('cpu', 'preview') is None
    store.add_timing('cpu', preview, 9.0, first=True)
    assert store.median_seconds('cpu', 'a') == 9
    for seconds in (1.0, 2.0, 6.0):
        store.add_timing('cpu', preview, seconds)
    assert store.median_seconds('cpu', 'a') == 2 and store.median_seconds('gpu', 'a') is None
    assert store.measured_rate('cpu', 'enhance') == 30 / 9, 'of other kinds'
    store.add_timing('cpu', video, 10.0)
    assert Estimator(store, 'cpu', 4).cost(other) == Cost(20.0, 80.0, 'scaled')
    store.close()
